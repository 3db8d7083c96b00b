"""ZSAQ on a BERT classifier with 4-bit or 8-bit weights and 8-bit inputs: as zsaq_bert_w2a8.py, other bits.

accelerate launch recipes/zsaq_bert_w4a8.py
accelerate launch recipes/zsaq_bert_w4a8.py --bits w8a8 --teacher DIR_OR_ID --task sst2 --generator DIR_OR_ID
"""

from zsaq_bert_w2a8 import main

from zsaq.script import told

if __name__ == "__main__":
    with told():
        main("w4a8", "zsaq_bert_w4a8", __doc__)
