"""What workers read and write in the database: claims, attempts, finished blocks, registered workers."""
