"""One prompt under one method or many: answers, costs and pictures of what was kept."""
