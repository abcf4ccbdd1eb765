"""What quantization did to held-out rows: next-token figures, images, replies, and the user's limits."""
