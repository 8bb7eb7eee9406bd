"""The search above it all: what each weight costs in each form, which form each gets, whether the promise is kept.

fisher        how much the model's output minds a change of each output of each linear: one pass backwards
sensitivity   what each form of each weight costs, in bytes and in nats: one pass forwards
allocate      the best forms within a size, or the smallest within a loss: exactly
promise       windows after windows of text until it is sure whether a loss is within a limit
run           `zeropoint budget`, and `zeropoint quantize` with a budget
"""
