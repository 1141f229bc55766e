"""What `profusion bench` measures: time and memory of one base model on one device.

- `measure`: seconds, peaks of memory, floating point operations, and how fast the device multiplies matrices
- `contenders`: what is measured, each as something to run
- `report`: all of it as plain data, and as a table
"""
