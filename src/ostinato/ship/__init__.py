"""What leaves the workshop: a trained network where it is used."""
