"""What the commands and studies have done: plain functions from what is in memory to what is in memory.

Each takes a resolved configuration, says what it has to say to a `Listener`, raises `ProfusionError`, and neither reads
options nor writes its results.

- `configuration`: a resolved configuration, and what a bundle remembers of one
- `remembered`: what is remembered of the user on this machine
- `trust`: what a bundle may have loaded, and from where
- `parents`: the PromptNets that subjects' adapters are for
- `photos`: photos as they come
- `views`: a photo -> pictures of its subject elsewhere
- `subject`: photos and views -> a subject
- `models`: what is loaded for one subject and kept for the next
- `exporting`: a subject -> what other tools take
- `compression`: a subject of whole weights -> the same of adapters
- `pictures`: subjects and prompts -> pictures
- `lineage`: what a picture remembers of its making
- `replay`: the command that makes it again
- `summaries`: what a bundle or a picture is, in some fifteen lines
- `promptnet`: many pictures -> a PromptNet
"""
