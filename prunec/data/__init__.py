"""The built-in world: procedural Shapes scenes and the tiny trained models that live in it."""
