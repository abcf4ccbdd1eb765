"""Every request of the API as data: method, path, what is sent, how the answer is read. A transport sends it."""
