"""Audio to text by running a bundle's packages: decoding, mel, token rules, timestamps, fallback, long-form."""
