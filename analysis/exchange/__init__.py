"""Vectors in the forms that people share: the released files, safetensors, control vectors of llama.cpp and repeng."""
