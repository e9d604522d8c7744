"""What several stages share: drawing pictures, scoring them, the training set's captions, the report. A stage imports
from here and from below, never from another stage."""
