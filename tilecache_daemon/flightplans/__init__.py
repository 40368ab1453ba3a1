"""Routes and areas from the files in which operators have them."""
