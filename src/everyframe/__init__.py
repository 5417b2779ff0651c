"""everyframe: understand every frame of a video for the price of a few."""
