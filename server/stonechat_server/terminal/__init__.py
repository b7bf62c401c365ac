"""What the commands share: flags made from typed options, and the look of tables."""
