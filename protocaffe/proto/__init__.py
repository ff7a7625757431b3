"""Reading and writing Caffe's files: prototxt, binary messages, and formats of earlier years."""
