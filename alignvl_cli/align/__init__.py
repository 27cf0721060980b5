"""The maths: mixing, perturbation, smoothing, adapters, losses, ranks. Tensors in, tensors out."""
