"""What ships is started in the form in which it ships."""
