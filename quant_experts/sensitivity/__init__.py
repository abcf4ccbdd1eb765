"""What quantizing each input group costs the whole model, measured in full precision before anything is fitted."""
