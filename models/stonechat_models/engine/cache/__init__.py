"""What is kept between steps: blocks of keys and values, and slots of recurrent states."""
