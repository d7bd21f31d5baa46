"""Reading and drawing what runs recorded."""
