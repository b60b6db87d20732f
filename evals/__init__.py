"""Score the forced choice and free generations of every condition, and report them."""
