"""Dense prediction: one network predicts the class, depth and surface normal of every pixel of an image."""
