"""What was used: providers' payloads made comparable, usage events checked, priced and recorded once."""
