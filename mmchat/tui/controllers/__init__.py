"""What the actions of the chat screen do, one controller for each subject."""
