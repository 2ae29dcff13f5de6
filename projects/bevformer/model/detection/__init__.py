"""From BEV features to boxes: head, decoder, matching and box coder."""
