"""What codes mean: where they fire, how alike those places are, what paraphrases share."""
