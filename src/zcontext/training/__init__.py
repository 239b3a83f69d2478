"""Learning: data, objectives, the loop. Nothing above floor 4 is needed to run a trained codec."""
