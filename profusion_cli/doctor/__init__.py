"""What `profusion doctor` finds out, as plain data that anybody may read.

- `machine`: versions, libraries, devices, memory and disks
- `presets`: what of each shipped preset is on this machine
- `trial`: whether the face world draws a picture
- `report`: all of it, without what is private, and as lines for people
"""
