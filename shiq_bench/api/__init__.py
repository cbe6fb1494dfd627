"""What a method and a task are written against. ``from shiq_bench import ...`` gives all of it, lazily."""
