"""The study of the published photonic mechanism (Ohana et al. 2021), with what its epsilon is worth."""
