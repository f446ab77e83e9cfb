"""How numbers, texts, tables and messages are written, in the app and on the command line alike."""
