"""What goes into and comes out of the model on the host side: tokens, chat prompts, streamed text."""
