"""Generated images: glyphs, and scenes with captions, boxes and masks. Seeded; item `i` never depends on the others."""
