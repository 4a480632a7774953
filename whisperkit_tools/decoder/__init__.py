"""Running the text decoder of a bundle: sessions with caches, teacher forcing, batches of decoding steps."""
