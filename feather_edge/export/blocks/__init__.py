"""One function per kind of layer: decoder blocks and vision blocks."""
