"""The compared methods of Tables 1 and 2, a file each."""
