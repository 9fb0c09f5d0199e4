import logging

# diffusers asks for image processors that no script here uses, and transformers would say at each start that they lack
# torchvision. What it falls back to is what is wanted.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision (not installed); falling back" not in str(record.msg)
)
