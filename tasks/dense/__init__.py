"""Dense prediction: classes, depths and surface normals for every pixel of an image, by one network."""
