"""Transfer of a pre-trained model to labelled tasks, the same for every modality."""
