"""One prompt under one method or many: answers, costs, pictures of what was kept. Commands `ask`, `chat`, `compare`."""
