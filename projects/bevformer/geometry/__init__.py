"""Pure maths on tensors: no mm* import, no parameters."""
