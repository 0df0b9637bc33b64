"""Run the evidence part by part: one problem in one table at a time, whose compact tables are kept as it ends."""
