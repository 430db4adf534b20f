-- The task table of an application whose workers poll it and which has neither lease nor owner nor due time.
-- What its foreign keys need comes first.
CREATE TABLE users (
  id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  username VARCHAR(64) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;

CREATE TABLE platform_connections (
  id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  user_id INT NOT NULL,
  name VARCHAR(100) NOT NULL,
  CONSTRAINT connection_of_user FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;

CREATE TABLE caption_generation_tasks (
  id VARCHAR(36) NOT NULL PRIMARY KEY,
  user_id INT NOT NULL,
  platform_connection_id INT NOT NULL,
  status ENUM('QUEUED','RUNNING','COMPLETED','FAILED','CANCELLED') NULL DEFAULT 'QUEUED',
  settings_json TEXT NULL,
  results_json TEXT NULL,
  error_message TEXT NULL,
  created_at DATETIME NULL,
  started_at DATETIME NULL,
  completed_at DATETIME NULL,
  progress_percent INT NULL DEFAULT 0,
  current_step VARCHAR(200) NULL,
  priority ENUM('low','normal','high','urgent') NULL DEFAULT 'normal',
  admin_notes TEXT NULL,
  resource_usage TEXT NULL,
  cancelled_by_admin TINYINT(1) NULL DEFAULT 0,
  admin_managed TINYINT(1) NULL DEFAULT 0,
  admin_user_id INT NULL,
  cancellation_reason VARCHAR(500) NULL,
  retry_count INT NULL DEFAULT 0,
  max_retries INT NULL DEFAULT 3,
  KEY by_user (user_id, status),
  KEY by_age (status, created_at),
  KEY by_priority (priority),
  CONSTRAINT task_of_user FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
  CONSTRAINT task_of_connection FOREIGN KEY (platform_connection_id) REFERENCES platform_connections (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;
