"""What runs inside diffusers: each module becomes one file of an exported folder, with all that it takes from here."""
