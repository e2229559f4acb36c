"""The built-in world and the small base model that was pretrained on it."""
