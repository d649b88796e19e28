"""The seam on which everything that acts stands: observation, inputs, model, robot units."""
