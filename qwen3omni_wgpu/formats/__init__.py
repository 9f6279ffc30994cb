"""What is on disk: model file formats, read into plain Python values. Knows no GPU and no network."""
