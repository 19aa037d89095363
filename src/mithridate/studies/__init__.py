"""What is made of many runs: the demo, the attack along its strength, the settings of papers."""
