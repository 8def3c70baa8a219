"""What runs inside of vLLM's workers: the sums of activations, and what is known of vLLM's model runners."""
