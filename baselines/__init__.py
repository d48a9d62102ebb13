"""Other methods on the same data, a file each. They borrow MACAW's losses."""
