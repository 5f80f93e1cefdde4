"""What runs inside of pods and control planes, as processes of their own."""
