"""What a trained model does on the test images. Training imports nothing from here. docs/code.md has the modules."""
